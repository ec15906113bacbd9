// The documentation of the REST API, drawn by Swagger UI from the service's own OpenAPI document.

SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#api",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  // It would send the document's address to a validator elsewhere.
  validatorUrl: null,
});
