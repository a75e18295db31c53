-- Empty a table of the outbox if all in it is published; see trim_outbox.sql for the parameters.   ->   done boolean
SELECT trim_outbox($1, $2, $3)
