"""A teacher, what it answers, and what its student loses by differing."""
