"""The Ray side: supervisor, runners, Ray Train backend, driver; all imports of ray are here."""
