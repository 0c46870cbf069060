"""What the rigs share: machines that are cut off, processes that are stopped and killed, an origin that counts.

Only the standard library of Python 3.11. A rig begins with `host.begin`, which says what is missing and prints the seed; all
that it mounts lives in a mount namespace of its own, so that nothing is left behind however the rig ends.
"""
