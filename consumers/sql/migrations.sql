-- The migrations that a projection's tables have, kept from others until the end of the transaction.
--   $1 projection text   ->   migrations text[]
SELECT migrations FROM projections WHERE projection = $1 FOR UPDATE
