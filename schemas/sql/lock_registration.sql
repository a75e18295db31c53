-- One registration at a time; readers are not held up. Ends with the transaction.
LOCK TABLE schemas IN SHARE ROW EXCLUSIVE MODE
