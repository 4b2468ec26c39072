"""How the tables came to be what they are; ``Store`` runs what a database has not had yet."""
