-- One value of each array type that our statements take or return: asyncpg asks the server for such a type when it meets it first.
SELECT NULL::bytea[], NULL::bigint[], NULL::int[], NULL::jsonb[], NULL::text[], NULL::timestamptz[], NULL::uuid[], NULL::boolean[], NULL::float8[]
