"""The direct solver behind ``train``: which options it takes, its model, its stages on disk."""
