"""What holds for all tests: none of them fails because the machine was slow."""

from hypothesis import settings

settings.register_profile("ledger", deadline=None)
settings.load_profile("ledger")
