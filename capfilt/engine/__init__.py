"""Plans a run, schedules its tasks, runs them in this process or on Ray, and reports progress."""
