"""Looking at single samples and deciding about them: galleries on localhost, and exports."""
