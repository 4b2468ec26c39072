"""The tables of version 0.3."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("before", sa.String(20), nullable=False),
        sa.Column("stage", sa.String(20), nullable=False),
        sa.Column("held", sa.Boolean, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("why", sa.String(2000), nullable=False),
        sa.Column("evidence", sa.JSON, nullable=False),
    )
    op.create_table(
        "photos",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sa.Column("part", sa.String(64), index=True),
        sa.Column("tokens", sa.Integer, nullable=False),
        sa.Column("token_mean", sa.Double, nullable=False),
        sa.Column("token_std", sa.Double, nullable=False),
        sa.Column("error", sa.Double, nullable=False),
        sa.Column("health", sa.JSON, nullable=False),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sa.Column("change", sa.Integer, sa.ForeignKey("changes.id"), nullable=False, index=True),
        sa.Column("part", sa.String(64), nullable=False),
        sa.Column("today", sa.String(200), nullable=False),
        sa.Column("tokens", sa.String(200), nullable=False),
        sa.Column("psnr", sa.Double, nullable=False),
        sa.Column("eye_distance", sa.Double, nullable=False),
    )
    op.create_table(
        "windows",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.Double, nullable=False, index=True),
        sa.Column("alarm", sa.Boolean, nullable=False),
        sa.Column("figures", sa.JSON, nullable=False),
        sa.Column("said", sa.JSON, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    for name in ("windows", "comparisons", "photos", "changes"):
        op.drop_table(name)
