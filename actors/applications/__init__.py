"""The owners of applications: workloads whose pods get their addresses from automatic pools of their own."""
