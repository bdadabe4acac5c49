"""Classes of characters that texts are cut by; one may have several."""

WORD, SPACE, SCRIPT = 1, 2, 4  # of words (\w), white space, of a script without spaces
