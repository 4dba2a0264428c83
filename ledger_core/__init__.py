"""The domain: ids, money, accounts, commands, queries, results and errors.

Imports neither gRPC nor LMDB nor pysyncobj: everything here is plain data and pure functions.
"""
