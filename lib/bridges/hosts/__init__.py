"""The models a connector speaks into."""
