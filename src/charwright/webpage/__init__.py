"""What the project's web pages share: their look, languages, texts coloured by surprise, and filling in a template."""
