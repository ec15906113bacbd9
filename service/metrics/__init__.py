"""What Prometheus reads at `/metrics`.

    readings.py   the live jobs as the store has them, read at each scrape
    jobs.py       those readings as metrics
    follow.py     counts what passes by in the event streams
    requests.py   counts requests, and how long their answers took to begin
    registry.py   all of it in one registry for one application

Series of a job exist only while that job is live, so that their number is bounded by what runs and
not by what ever ran. What the store knows is computed when it is asked for; only what has no place
there is counted along the way, and begins at zero when the service starts, as Prometheus expects of
counters.
"""
