"""`llmpipe bench`: the load generator's plans, rounds, figures and reports.

`_load` makes the load and counts; here is decided what is measured, in which order, and how it is shown. Nothing here
runs while an event is timed.
"""
