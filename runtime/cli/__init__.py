"""`vicort-run`: arguments, questions from files, terminals and sockets, and output formats."""
