-- For a table that was made before records could come late.
ALTER TABLE projection_offsets ADD COLUMN IF NOT EXISTS last_late bigint NOT NULL DEFAULT 0
