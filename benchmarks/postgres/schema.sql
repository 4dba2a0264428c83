-- A double-entry ledger as one would write it by hand. Only transfer() writes, so there are no
-- foreign keys to pay for.
CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    floor bigint NOT NULL DEFAULT 0,
    balance bigint NOT NULL,
    CHECK (balance >= floor)
) WITH (fillfactor = 50);

CREATE TABLE transactions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id uuid NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Positive amounts come in, negative ones go out; those of a transaction sum to zero.
CREATE TABLE entries (
    transaction_id bigint NOT NULL,
    line smallint NOT NULL,
    account_id bigint NOT NULL,
    amount bigint NOT NULL,
    PRIMARY KEY (transaction_id, line)
);
CREATE INDEX entries_of_account ON entries (account_id, transaction_id);

-- Moves money, once for each request id. An account that would fall below its floor fails the CHECK.
CREATE FUNCTION transfer(payer bigint, payee bigint, moved bigint, request uuid) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    number bigint;
BEGIN
    INSERT INTO transactions (request_id) VALUES (request)
        ON CONFLICT (request_id) DO NOTHING RETURNING id INTO number;
    IF number IS NULL THEN
        SELECT id INTO number FROM transactions WHERE request_id = request;
        RETURN number;
    END IF;
    -- In the order of their ids, so that no two transfers wait for each other.
    PERFORM FROM accounts WHERE id IN (payer, payee) ORDER BY id FOR NO KEY UPDATE;
    UPDATE accounts SET balance = balance - moved WHERE id = payer;
    UPDATE accounts SET balance = balance + moved WHERE id = payee;
    INSERT INTO entries (transaction_id, line, account_id, amount)
        VALUES (number, 0, payer, -moved), (number, 1, payee, moved);
    RETURN number;
END
$$;

-- Many transfers between random accounts in one transaction. All rows are locked first, in order.
CREATE FUNCTION random_transfers(transfers int, accounts int) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    payers bigint[];
    payees bigint[];
BEGIN
    SELECT array_agg(payer), array_agg(1 + (payer + step) % accounts) INTO payers, payees
        FROM (
            SELECT 1 + floor(random() * accounts)::bigint AS payer,
                   floor(random() * (accounts - 1))::bigint AS step
            FROM generate_series(1, transfers)
        ) AS drawn;
    PERFORM FROM accounts AS held WHERE held.id = ANY (payers || payees)
        ORDER BY held.id FOR NO KEY UPDATE;
    FOR place IN 1..transfers LOOP
        PERFORM transfer(payers[place], payees[place], 1, gen_random_uuid());
    END LOOP;
END
$$;
