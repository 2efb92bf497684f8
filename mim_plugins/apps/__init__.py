"""Commands built on the package: the demo, the report, the embedded photographs."""
