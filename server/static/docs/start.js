// Shows the OpenAPI document. Its address is relative, so that the page works below any prefix of a proxy.

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // the default is another host
});
