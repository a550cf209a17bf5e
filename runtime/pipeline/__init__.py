"""From items to verdicts in stages that overlap: preparation in threads, then the engine, order kept."""
