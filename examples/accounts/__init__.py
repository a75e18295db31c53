"""Accounts: one event type that changed its mind four times, and is read in today's shape everywhere.

Versions 2 and 4 add fields with a default, which Avro's own rules can read. Versions 3 and 5 say the amount in another way: for
them there are upcasters, and for version 5 a way back, so that programs that know version 4 read new events too.
"""
