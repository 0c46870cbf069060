"""Parts of the benches: a server that counts, clients, rounds in which they take turns, tables and pictures."""
