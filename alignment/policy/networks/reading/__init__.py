"""What tells how an adapter was made: settings that lie beside it, or in its header."""
