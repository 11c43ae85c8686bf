// Sets up the page at /swagger-ui/. The token from the response to a login or refresh, or the one typed in by
// the user, is sent with all later requests, in every document. The token is kept only in the memory of this
// page.
window.onload = () => {
  const GIVES_TOKENS = ["/auth/login", "/auth/refresh"];
  const ENDS_SESSIONS = ["/auth/logout", "/auth/logout-all"];
  let token = null;

  // Does nothing if the current document has no such scheme, or is not loaded yet.
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
    // Otherwise the page would send the address of our description to an external service.
    validatorUrl: "none",
    presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
    plugins: [
      SwaggerUIBundle.plugins.DownloadUrl,
      // Keeps the token given to "Authorize" for the next document, and forgets it on logout.
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
    // Swagger UI forgets the authorization when the document changes.
    onComplete: show,
  });
};
