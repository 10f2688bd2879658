"""What methods are made of: views, heads, teachers, terms."""
