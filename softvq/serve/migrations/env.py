"""Read by Alembic: where the tables are described, and the connection that ``Store`` hands over."""

from alembic import context

from softvq.serve.store import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,  # SQLite changes a column by copying its table
)
with context.begin_transaction():
    context.run_migrations()
