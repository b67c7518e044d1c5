"""The loop's report: a journal in numbers, in sentences, in pictures, and as a page."""
