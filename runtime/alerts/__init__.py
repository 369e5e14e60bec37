"""Alerts: standing questions whose answers fire and clear, and what is sent then."""
