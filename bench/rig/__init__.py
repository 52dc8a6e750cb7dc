"""The modules of `bench.py` and `proxy`.

weft, envoy, peers   how each proxy is configured and started in a role
processes            starting, pinning and stopping processes; their CPU time and memory
scenarios            what is measured
report               pure functions from measurements to Markdown and SVG
"""
