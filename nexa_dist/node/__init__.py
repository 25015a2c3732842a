"""The node agent, which runs on a cluster node: standard library only, Python 3.9 or newer, sent as one file,
`agent.pyz`.

In that file the package is called `nexa_agent`, so that it never hides the `nexa_dist` on the run's PYTHONPATH.
"""
