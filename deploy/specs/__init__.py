"""Plain data and calculations: settings, request, plan, machine, estimates."""
