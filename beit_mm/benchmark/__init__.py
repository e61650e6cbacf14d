"""From runs to a table: records, leaderboard, curves, pictures, report. Files in, files out."""
