"""What users load, and what a run resumes from."""
