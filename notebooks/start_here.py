"""Three questions to the warehouse, answered in SQL.

    marimo edit notebooks/start_here.py     to change it
    marimo run notebooks/start_here.py      to read it

Start it where `midbound.duckdb` lies, or name the file in DESTINATION__WAREHOUSE__CREDENTIALS.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Who visited?")


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    # Who visited, and what did they want?

    Everything here is SQL on the tables that `midbound load` fills. Change a query, and
    what depends on it runs again.
    """)


@app.cell
def _():
    import os
    from pathlib import Path

    import altair as alt
    import duckdb
    import marimo as mo

    return Path, alt, duckdb, mo, os


@app.cell
def _(Path, duckdb, mo, os):
    DATASET = "midbound_data"
    configured = os.environ.get("DESTINATION__WAREHOUSE__CREDENTIALS") or "midbound.duckdb"
    is_address = "@" in configured or "://" in configured.removeprefix("duckdb:///")
    database = Path(configured.removeprefix("duckdb:///"))

    def explain():
        """Say why there is nothing to show, but never an address: it may hold a password."""
        if is_address:
            return "The warehouse is not a DuckDB file; this notebook opens only such a one."
        if not database.is_file():
            return f"There is no file `{database.absolute()}` yet: run `make demo` first."
        try:
            with duckdb.connect(str(database), read_only=True) as connection:
                found = connection.execute(
                    "SELECT 1 FROM information_schema.schemata WHERE schema_name = ?", [DATASET]
                ).fetchall()
        except duckdb.Error as error:
            return f"The file cannot be opened now: {error}"
        return None if found else "The file holds no events yet: run `midbound load` first."

    problem = explain()
    mo.stop(problem is not None, mo.callout(mo.md(problem or ""), kind="warn"))
    return DATASET, database


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## What a visit is

    Midbound sends up to five kinds of events about one session. Only the last one,
    `identity.session.finalized`, lists the pages, and it may come twice. So the queries below
    start from three views:

    - **`visits`**: the latest finalized event of each session. Bots are left out, and mind the
      direction: a *high* bot score means a *person* (1–29 is likely automated, 0 is unknown).
    - **`visit_companies`**: the companies of each visit, each once. The same company stands in
      `companies` *and* in `employments`, so we read only one of them. One visit may count for two
      companies: people have two jobs.
    - **`page_views`**: the pages of each visit, by path.
    """)


@app.cell
def _(DATASET, database, duckdb, mo):
    VIEWS = r"""
    CREATE TEMP VIEW visits AS
    SELECT
        event_id,
        coalesce(session_id, event_id) AS session_id,
        session__created_at AS started_at,
        coalesce(session__ended_at, occurred_at) AS ended_at,
        person__full_name AS full_name,
        lower(person__email) AS email,
        -- There is no id of a person: the LinkedIn address without its trimmings is the best.
        coalesce(
            regexp_replace(lower(person__linkedin_url), '^https?://(www\.)?|/+$', '', 'g'),
            lower(person__email),
            visitor_id
        ) AS person
    FROM (
        FROM events
        WHERE event_type = 'identity.session.finalized'
        QUALIFY row_number() OVER (
            PARTITION BY coalesce(session_id, event_id) ORDER BY occurred_at DESC, event_id DESC
        ) = 1
    )
    WHERE coalesce(session__network__bot_management__score, 0) NOT BETWEEN 1 AND 29
        AND NOT coalesce(session__network__bot_management__verified_bot, false);

    CREATE TEMP VIEW visit_companies AS
    SELECT
        visits.session_id,
        coalesce(lower(domain), linkedin_id, lower(name)) AS company_key,
        any_value(name) AS company,
        any_value(lower(domain)) AS domain
    FROM companies
    JOIN visits USING (event_id)
    GROUP BY ALL;

    CREATE TEMP VIEW page_views AS
    SELECT
        visits.session_id,
        ts AS viewed_at,
        -- https://www.example.com/pricing/?plan=pro is the page /pricing.
        coalesce(nullif(rtrim(regexp_extract(url, '^\w+://[^/?#]+([^?#]*)', 1), '/'), ''), '/')
            AS page,
        outlink
    FROM page_events
    JOIN visits USING (event_id);
    """

    def show(answer):
        """Lay an answer out for reading: instants to the minute, nothing where there is nothing."""
        instants = {
            field.name: "{:%Y-%m-%d %H:%M}"
            for field in answer.schema
            if "timestamp" in str(field.type)
        }
        numbers = {
            field.name: lambda value: "" if value is None else f"{value:g}"
            for field in answer.schema
            if str(field.type) == "double"
        }
        return mo.ui.table(
            answer,
            selection=None,
            page_size=8,
            format_mapping=instants | numbers,
            show_data_types=False,
            show_column_summaries=False,
            show_download=False,
        )

    def ask(question, **values):
        """Run a query and give its answer as an Arrow table.

        The file is opened for the question only: while it is open, no load can write to it.
        """
        with duckdb.connect(str(database), read_only=True) as connection:
            connection.execute(f"SET TimeZone = 'UTC'; USE {DATASET}; {VIEWS}")
            return connection.execute(question, values).to_arrow_table()

    return ask, show


@app.cell(hide_code=True)
def _(mo):
    days = mo.ui.slider(1, 90, value=30, label="days, back from the newest visit", show_value=True)
    mo.vstack([mo.md("## 1. Which companies visited lately?"), days])
    return (days,)


@app.cell
def _(ask, days):
    companies = ask(
        """
        WITH recent AS (
            FROM visits
            WHERE started_at > (SELECT max(started_at) FROM visits) - to_days($days)
        ),

        -- Counted before the join: a visit of two companies must not show its pages twice to one.
        pages AS (SELECT session_id, count(*) AS page_views FROM page_views GROUP BY session_id)

        SELECT
            any_value(company) AS company,
            count(DISTINCT person) AS people,
            count(*) AS sessions,
            sum(coalesce(page_views, 0))::BIGINT AS page_views,
            min(started_at) AS first_seen,
            max(ended_at) AS last_seen
        FROM recent
        JOIN visit_companies USING (session_id)
        LEFT JOIN pages USING (session_id)
        GROUP BY company_key
        ORDER BY people DESC, page_views DESC, company
        """,
        days=days.value,
    )
    return (companies,)


@app.cell(hide_code=True)
def _(companies, show):
    show(companies)


@app.cell
def _(ask, days):
    interest = ask(
        """
        WITH views AS (
            SELECT company_key, any_value(company) AS company, page, count(*) AS views
            FROM page_views
            JOIN visits USING (session_id)
            JOIN visit_companies USING (session_id)
            WHERE started_at > (SELECT max(started_at) FROM visits) - to_days($days)
            GROUP BY company_key, page
        ),

        most_active AS (
            SELECT company_key, sum(views)::BIGINT AS total
            FROM views
            GROUP BY company_key
            ORDER BY total DESC, company_key
            LIMIT 12
        )

        SELECT company, page, views, total
        FROM views
        JOIN most_active USING (company_key)
        ORDER BY total DESC, company, page
        """,
        days=days.value,
    )
    return (interest,)


@app.cell(hide_code=True)
def _(alt, interest):
    PALETTE = ["#1f4e79", "#2a9d8f", "#e9c46a", "#f4a261", "#e76f51", "#8d6a9f", "#9aa5b1"]

    chart = (
        alt.Chart(
            interest,
            title=alt.Title(
                "What the most active companies looked at",
                subtitle="page views by page, the twelve companies with the most",
            ),
        )
        .mark_bar(height={"band": 0.72}, stroke="white", strokeWidth=1)
        .encode(
            x=alt.X("sum(views):Q", title="page views", axis=alt.Axis(tickMinStep=1, domain=False)),
            y=alt.Y(
                "company:N",
                title=None,
                sort=alt.EncodingSortField("total", op="max", order="descending"),
                axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=220),
            ),
            color=alt.Color(
                "page:N",
                title="page",
                scale=alt.Scale(range=PALETTE),
                legend=alt.Legend(symbolType="square"),
            ),
            order=alt.Order("page:N"),
            tooltip=["company", "page", "views"],
        )
        .properties(width="container", height=alt.Step(26))
        .configure(font="PT Sans, Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            gridColor="#e6e9ed", labelFontSize=12, titleFontSize=12, titleFontWeight="normal"
        )
        .configure_title(anchor="start", fontSize=16, subtitleColor="#667085", offset=14)
    )
    chart
    return (chart,)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## 2. Who looked at the prices, and may we write to them?

    People who opened `/pricing`, with a *work* address that was found *valid*: its domain is the
    company's, which leaves out private addresses, and the latest verdict on it counts (a check that
    ended in an error says nothing).
    """)


@app.cell
def _(ask):
    prospects = ask(
        """
        WITH verdicts AS (
            SELECT lower(email) AS email, validity
            FROM email_validations
            WHERE validity IS NOT NULL
            QUALIFY row_number() OVER (
                PARTITION BY lower(email) ORDER BY occurred_at DESC, event_id DESC
            ) = 1
        ),

        pricing AS (
            SELECT session_id, count(*) AS views, max(viewed_at) AS last_viewed_at
            FROM page_views
            WHERE page = '/pricing'
            GROUP BY session_id
        )

        SELECT
            any_value(company) AS company,
            any_value(full_name) AS person,
            email,
            sum(views)::BIGINT AS pricing_views,
            max(last_viewed_at) AS last_viewed_at
        FROM pricing
        JOIN visits USING (session_id)
        JOIN visit_companies USING (session_id)
        JOIN verdicts USING (email)
        WHERE validity = 'valid'
            AND (split_part(email, '@', 2) = domain OR email LIKE '%.' || domain)
        GROUP BY company_key, email
        ORDER BY last_viewed_at DESC, email
        """
    )
    return (prospects,)


@app.cell(hide_code=True)
def _(prospects, show):
    show(prospects)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## 3. How far do visits get: features, prices, booking?

    In this order, within one visit. A booking is a click on a link that leads away from the site
    (`outlink`), to a calendar. The click's own time is not sent, only that of the page it was on;
    so someone who books from the price page itself took no time at all.
    """)


@app.cell
def _(ask):
    funnel = ask(
        r"""
        WITH features AS (
            SELECT session_id, min(viewed_at) AS features_at
            FROM page_views
            WHERE page = '/features'
            GROUP BY session_id
        ),

        pricing AS (
            SELECT session_id, any_value(features_at) AS features_at, min(viewed_at) AS pricing_at
            FROM features
            JOIN page_views USING (session_id)
            WHERE page = '/pricing' AND viewed_at >= features_at
            GROUP BY session_id
        ),

        booking AS (
            SELECT session_id, any_value(pricing_at) AS pricing_at, min(viewed_at) AS booking_at
            FROM pricing
            JOIN page_views USING (session_id)
            WHERE viewed_at >= pricing_at
                AND regexp_matches(outlink, '://([^/]*\.)?(calendly|cal|savvycal|booking)\.')
            GROUP BY session_id
        ),

        steps AS (
            SELECT 1 AS step, 'saw /features' AS reached, count(*) AS visits, NULL AS minutes
            FROM features
            UNION ALL
            SELECT 2, 'then /pricing', count(*), median(epoch(pricing_at - features_at)) / 60
            FROM pricing
            UNION ALL
            SELECT 3, 'then a booking link', count(*), median(epoch(booking_at - pricing_at)) / 60
            FROM booking
        )

        SELECT
            reached,
            visits,
            round(100 * visits / nullif(lag(visits) OVER (ORDER BY step), 0), 1)
                AS percent_of_step_before,
            round(minutes, 1) AS median_minutes_since_step_before
        FROM steps
        ORDER BY step
        """
    )
    return (funnel,)


@app.cell(hide_code=True)
def _(funnel, show):
    show(funnel)


@app.cell(hide_code=True)
def _(mo):
    mo.md("""
    ## From here

    `SHOW ALL TABLES` lists what there is. Every table has `event_id`, `session_id`, `visitor_id`,
    `occurred_at` and `received_at`, so most questions need no join. `deliveries` says where each
    event came from, `loads` when it was loaded. New fields that Midbound sends appear as new
    columns by themselves.
    """)


if __name__ == "__main__":
    app.run()
