"""The Ray side: supervisor, runners, Ray Train backend, driver. The only package that imports ray."""
