"""The routes of the service: each module holds those of one concern."""
