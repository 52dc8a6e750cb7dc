"""What `bench.py` and `proxy` are made of.

weft, envoy, peers   how each proxy is started in a role
processes            starting, pinning, stopping; CPU time and memory of what runs
scenarios            what is measured
report               what the measurements say: pure functions from raw lines to Markdown and SVG
"""
