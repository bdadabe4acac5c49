"""How hard the solver may try: names only, so that a command line knows them without NumPy."""

EFFORTS = ("fast", "normal", "best")
