"""The app whose workers are measured: it does nothing, so that what is left is ours."""

from cjm_workflow_sessions import warm

@warm.app("echo", timeout=600)
class Echo:
    def run(self, input): return input
