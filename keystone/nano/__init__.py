"""keystone-nano: the small base that ships with the project, its text, its tokenizer and its recipe."""
