"""The application behind the command line. It imports the library; nothing imports it."""
