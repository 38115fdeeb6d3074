"""Who may ask, how much, and what they used.

database   SQLite or PostgreSQL by one URL; tables: what is in it; migrations: how it came to be so
keys       create, list and revoke keys
ring       the keys in memory, a second behind the database
limits     requests and tokens in a minute, requests at once, for each key
guard      ASGI middleware: default deny by address; hosts: names that a server without keys answers to
journal    one line for each ended request, in a file that outlives the process
usage      the sums for each key, adapter and day; folding: from the journal into them, exactly once
accounts   all of it together, for one server
"""
