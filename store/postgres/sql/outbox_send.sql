-- Record messages; see send_messages.sql for the parameters.   ->   position of the first bigint
SELECT send_messages($1, $2, $3, $4, $5, $6)
