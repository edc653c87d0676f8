-- One row per company (domain of the current employer) with at least one finalized session.
-- Question: which companies visited, how many people, and what did they look at?
WITH sessions AS (
    SELECT event_id, session_id, person__linkedin_url
    FROM midbound_data.events
    WHERE event_type = 'identity.session.finalized'
),

employers AS (
    SELECT event_id, any_value(company__domain) AS domain, any_value(company__name) AS company
    FROM midbound_data.employments
    WHERE end_date IS NULL
    GROUP BY event_id
)

SELECT
    employers.company,
    employers.domain,
    count(DISTINCT sessions.person__linkedin_url) AS people,
    count(DISTINCT sessions.session_id) AS sessions,
    count(*) AS page_views,
    list_sort(list(DISTINCT regexp_extract(pages.url, 'https?://[^/]+(/[^?#]*)', 1)))
        .array_to_string(' ') AS pages
FROM sessions
INNER JOIN employers USING (event_id)
INNER JOIN midbound_data.page_events AS pages USING (event_id)
GROUP BY ALL
ORDER BY people DESC, page_views DESC, domain
LIMIT 10
