-- Which of some schemas are there.
--   $1 fingerprints bytea[]   ->   fingerprint bytea
SELECT fingerprint FROM schemas WHERE fingerprint = ANY ($1)
