// Sets up the page at /swagger-ui/. The token that a login or a refresh answers with, or that is typed in, is the
// caller's from then on, in whichever document; it is kept in this page's memory and nowhere else.
window.onload = () => {
  const GIVES_TOKENS = ["/auth/login", "/auth/refresh"];
  const ENDS_SESSIONS = ["/auth/logout", "/auth/logout-all"];
  let token = null;

  // Null where the document at hand has no such scheme, or is not there yet.
  const show = () => token && window.ui.preauthorizeApiKey("bearer", token);

  window.ui = SwaggerUIBundle({
    dom_id: "#swagger-ui",
    urls: [
      { name: "Everything", url: "/openapi.json" },
      { name: "Patients", url: "/api-docs/patients" },
      { name: "Authentication", url: "/api-docs/auth" },
    ],
    deepLinking: true,
    layout: "StandaloneLayout",
    // Else the page would tell an outside service where our description is.
    validatorUrl: "none",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [
      SwaggerUIBundle.plugins.DownloadUrl,
      // What "Authorize" is given holds in the next document too, and what it is told to forget does not come back.
      () => ({
        statePlugins: {
          auth: {
            wrapActions: {
              authorize: (original) => (given) => {
                token = given.bearer?.value ?? token;
                return original(given);
              },
              logout: (original) => (names) => {
                token = null;
                return original(names);
              },
            },
          },
        },
      }),
    ],
    responseInterceptor: (response) => {
      const path = new URL(response.url, window.location.href).pathname;
      if (response.ok && GIVES_TOKENS.includes(path)) {
        token = response.body.token;
        show();
      } else if (response.ok && ENDS_SESSIONS.includes(path)) {
        window.ui.authActions.logout(["bearer"]);
      }
      return response;
    },
    // A change of the document forgets who the caller was.
    onComplete: show,
  });
};
