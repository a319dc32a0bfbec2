"""What runs on the other side: a small server that forks for every program.

Only the standard library is imported here, and little of it: the server is started by ``exec`` with
the folder above this one on its path, as the package ``guest``, and stays small so that a fork of
it is cheap. The parent imports the same modules for what both sides must agree on.
"""
