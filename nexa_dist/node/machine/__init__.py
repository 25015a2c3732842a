"""The machine under the agent: devices, processes, control groups."""
